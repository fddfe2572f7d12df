"""Text in and out: tokenizer, chat template, streaming decoder and the vendor's sampling defaults."""
