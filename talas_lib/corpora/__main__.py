"""The report on a file of sentences (see file_report): python -m talas_lib.corpora my_sentences.csv --text-column body"""

import sys

from talas_lib.corpora.file_report import main

if __name__ == "__main__":
    sys.exit(main())
