"""`python -m ssl_lessons …` is `ssl-lessons …`; `accelerate launch -m ssl_lessons pretrain …` needs it."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
