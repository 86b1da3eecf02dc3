"""The report's plots, one topic a file: each makes its plots from an evaluation, or says why it cannot."""
