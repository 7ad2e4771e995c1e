//! The platform's side of the broker: it puts requests on the queue, and nothing more.

use anyhow::{Context, Result, bail};
use image_builder::config::Config;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeleteOptions,
};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;

pub(crate) struct Broker {
    channel: Channel,
    _connection: Connection,
}

impl Broker {
    pub(crate) async fn connect(uri: &str) -> Result<Self> {
        // The URI may hold a password: it is not repeated.
        let connection = Connection::connect(uri, ConnectionProperties::default())
            .await
            .context("cannot connect to RabbitMQ at RABBITMQ_URI")?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { channel, _connection: connection })
    }

    /// Puts a request on a queue and waits until the broker has it: a plain JSON body, no headers.
    pub(crate) async fn publish(&self, queue: &str, request: &Value) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let body = serde_json::to_vec(request)?;
        let confirm =
            self.channel.basic_publish("".into(), queue.into(), options, &body, persistent).await?;
        match confirm.await? {
            Confirmation::Ack(None) => Ok(()),
            // Only the reason: what comes back with it is the request, token and all.
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                bail!("the broker sent the request back: {}", returned.reply_text)
            }
            Confirmation::Nack(None) | Confirmation::NotRequested => {
                bail!("the broker did not confirm the request")
            }
        }
    }

    /// Removes all queues of a worker with these settings.
    pub(crate) async fn remove_queues(&self, config: &Config) -> Result<()> {
        let topology = &config.broker.topology;
        for queue in topology.queues().iter().chain([topology.ledger()]) {
            let name = queue.name.as_str().into();
            self.channel.queue_delete(name, QueueDeleteOptions::default()).await?;
        }
        let exchange = topology.cancel_exchange().into();
        self.channel.exchange_delete(exchange, ExchangeDeleteOptions::default()).await?;
        Ok(())
    }
}
