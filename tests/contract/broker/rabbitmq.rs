//! What only a real RabbitMQ can show.
