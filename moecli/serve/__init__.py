"""Models over HTTP: the APIs of OpenAI, Ollama and Anthropic in front of one engine."""
