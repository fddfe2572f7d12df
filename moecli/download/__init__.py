"""From the Hub into the Hugging Face cache: what to fetch, and fetching it resumed, verified and safely."""
