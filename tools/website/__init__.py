"""The site that `make docs` builds: notebooks executed on tiny models, pages laid out, mkdocs, links checked."""
