"""What the page of a service and the page of a browser alone have in common."""

from pathlib import Path

FILES = Path(__file__).with_name("files")  # of the page itself, and of the service's side of it
VIEW = 1024  # pixels of the longer side of what the page shows
HEAT = 128  # pixels of the longer side of a heat map
MOST_BYTES = 64 << 20  # of a picture's file
MOST_PIXELS = 50_000_000  # room for the photographs of a telephone
