"""Video: clips, cameras and streams in, overlay videos and labels out; stages that overlap in bounded queues."""
