//! How the platform asks for builds: over the worker's API, or by RabbitMQ's build queue.

use anyhow::{Context, Result, bail, ensure};
use image_builder::config::Config;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeleteOptions,
};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use reqwest::StatusCode;
use serde_json::Value;

/// The platform's way to the worker.
pub(crate) enum Requests {
    /// The worker's address: it has a queue of its own.
    OverHttp(String),
    RabbitMq(Box<RabbitMq>),
}

impl Requests {
    /// Asks for a build; returns once that is durable, with who says so.
    pub(crate) async fn publish(&self, queue: &str, request: &Value) -> Result<&'static str> {
        match self {
            Requests::OverHttp(worker) => {
                let url = format!("http://{worker}/v1/builds");
                let answer = reqwest::Client::new().post(url).json(request).send().await?;
                let status = answer.status();
                ensure!(status == StatusCode::ACCEPTED, "{status}: {}", answer.text().await?);
                Ok("accepted by the worker")
            }
            Requests::RabbitMq(broker) => {
                broker.publish(queue, request).await?;
                Ok("confirmed by the broker")
            }
        }
    }

    /// The log of a build, as the worker's API has it.
    pub(crate) async fn log(worker: &str, build_id: &str) -> Result<String> {
        let url = format!("http://{worker}/v1/builds/{build_id}/log");
        Ok(reqwest::get(url).await?.error_for_status()?.text().await?)
    }
}

pub(crate) struct RabbitMq {
    channel: Channel,
    _connection: Connection,
}

impl RabbitMq {
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
