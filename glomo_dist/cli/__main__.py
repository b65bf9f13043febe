"""`python -m glomo_dist.cli ...` is `glomo ...`; `torchrun ... -m glomo_dist.cli pretrain ...` is one rank of it."""

import sys

from glomo_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
