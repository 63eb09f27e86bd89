"""What a pyramid of attention maps has to be, its weights and its anchors."""
