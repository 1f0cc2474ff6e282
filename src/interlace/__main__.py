"""`python -m interlace` is the same program as `interlace`."""

from interlace.cli.main import main

if __name__ == "__main__":
    main()
