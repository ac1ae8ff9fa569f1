"""What a run looks like: one self-contained HTML page, made from the files of the run folder."""
