"""`python -m bmlpipe.train`, and `torchrun --nproc-per-node N -m bmlpipe.train`."""

from bmlpipe.train.run import main

main()
