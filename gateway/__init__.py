"""Messages from any broker become durable jobs whose effects commit exactly once."""
