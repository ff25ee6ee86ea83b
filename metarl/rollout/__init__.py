"""Acting: pools and a population make rollouts; replay keeps them."""
