"""What `bin/docs` builds the site with; nothing of it is imported by the package."""
