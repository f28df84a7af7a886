"""`python -m plait`, which torchrun, srun and mpirun can start."""

from plait.cli import main

main()
