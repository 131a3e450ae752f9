"""A small CRM: companies and people, deals and products, what was said and agreed, and who changed any of it."""
