"""The builder that rules, losses and update functions are written against, and how operators are written."""
