"""From shards to a model: loader, encoders, fusion, modulation, loop, evaluation, journals."""
