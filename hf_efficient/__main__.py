"""`python -m hf_efficient`, which `accelerate launch -m hf_efficient ...` starts on every process."""

import sys

from hf_efficient.cli import main

sys.exit(main())
