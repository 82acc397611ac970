"""What is wrong on this host? `modeld doctor`: one report of findings, each with what to do about it."""
