"""What `auto` comes to, from a card's memory, a model's shape and the length of a run."""
