"""Words that every other folder uses: checks, randomness, row numbers. No torch, and no other folder."""
