"""A package so that its test files may share names with other rooms' and import `cases`."""
