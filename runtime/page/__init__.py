"""A page that segments pictures: of a service, or as a static site in the browser alone."""
