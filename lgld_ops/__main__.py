"""``python -m lgld_ops`` is ``lgld-ops``."""

from lgld_ops.cli import main

if __name__ == "__main__":
    main(prog_name="python -m lgld_ops")
