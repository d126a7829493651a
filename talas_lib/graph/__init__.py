"""A preset as a graph of jobs: what there is to do, what it would cost, and Snakemake, which does it."""
