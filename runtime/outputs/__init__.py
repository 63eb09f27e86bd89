"""What is written: drawing, label pictures, videos and archives."""
