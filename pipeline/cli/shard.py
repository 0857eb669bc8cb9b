"""The command `bmlpipe shard`: write features as shards."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bmlpipe.manifests import places
from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.pipeline.cli.options import (
    DATASET,
    EXISTING_FOLDER,
    FOLDER,
    flags_option,
    kinds_option,
    log_next,
    log_places,
)


@click.command(
    cls=Program,
    on_interrupt="nothing was changed; run the same command again",
    examples=("bmlpipe shard", "bmlpipe shard --features features/cremad --out shards/cremad --drop-flag silent"),
)
@option("--dataset", type=DATASET, help="Data set.", shown="the data set of the features")
@option(
    "--features",
    type=EXISTING_FOLDER,
    help="Feature folder, written by bmlpipe extract.",
    shown="features/<dataset>, or the only one in features/",
)
@option("--out", type=FOLDER, help="Folder of the shards; earlier shards in it are replaced.", shown="shards/<dataset>")
@kinds_option("Feature kinds to take, separated by commas.", shown="all in the features")
@flags_option(
    "--drop-flag", "drop_flags", "Leave out clips with this flag, such as silent, clipped, still; repeatable."
)
@option("--samples-per-shard", default=1000, type=click.IntRange(1), help="Number of samples per tar file.")
@option("--seed", default=0, help="Seed of the order in which samples are written.")
def shard(
    dataset: str | None,
    features: Path | None,
    out: Path | None,
    kinds: tuple[str, ...] | None,
    samples_per_shard: int,
    seed: int,
    drop_flags: tuple[str, ...],
) -> None:
    """Write features as WebDataset tar shards with an index."""
    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.pipeline.sharding.write import write_shards

    features = features or _default_features(dataset)
    dataset = dataset or _dataset_of(features)
    out = out or places.shards_folder(dataset)
    log_places(features=features, shards=out)
    with ProgressMeter("samples") as meter:
        counts = write_shards(
            dataset,
            features,
            out,
            kinds=kinds,
            drop_flags=drop_flags,
            samples_per_shard=samples_per_shard,
            seed=seed,
            progress=meter,
        )
    click.echo(f"{sum(counts.values())} samples ({', '.join(f'{s} {n}' for s, n in counts.items())}) in {out}")
    log_next("bmlpipe train" if out == places.shards_folder(dataset) else f"bmlpipe train --shards {out}")


def _default_features(dataset: str | None) -> Path:
    from bmlpipe.pipeline.store.folder import FeatureFolder

    if dataset is not None:
        return places.features_folder(dataset)
    holding = FeatureFolder(Path()).dataset.name
    return places.the_only(places.FEATURES, holding, option="--features", command="bmlpipe extract")


def _dataset_of(features: Path) -> str:
    """Read the name of the data set that a feature folder states."""
    from bmlpipe.pipeline.store.folder import FeatureFolder

    path = FeatureFolder(features).dataset
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["dataset"])
    except FileNotFoundError as error:
        raise places.PlaceError(
            f"{features} holds no {path.name}, so no features. Run bmlpipe extract first, or name a feature folder "
            "with --features."
        ) from error
