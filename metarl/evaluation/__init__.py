"""Training fresh agents with frozen rules, and scoring them."""
