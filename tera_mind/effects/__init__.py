"""What an intervention did to generated tissue: where pixels changed, nuclei before and after, scores, nulls."""
