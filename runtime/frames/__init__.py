"""What INPUT may be: pictures, clips, cameras and streams, decoded to frames."""
