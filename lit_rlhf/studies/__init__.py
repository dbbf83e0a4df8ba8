"""Studies: arms of one experiment over several seeds, what they ended with, and what can be concluded."""
