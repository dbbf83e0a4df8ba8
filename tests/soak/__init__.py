"""Checks that take minutes or hours, run by hand: kills and resumes, slips put into the code on purpose."""
