"""`python -m modeld` is the same program as `modeld`."""

from modeld.app import main

raise SystemExit(main())
