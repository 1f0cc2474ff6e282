"""The gated delta rule: `README.md` derives it, `recurrent.py` defines it, `chunked.py` makes it fast."""
