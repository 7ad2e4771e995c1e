//! The oracle's own way to RabbitMQ, as a patient publisher has one.

use std::time::{Duration, Instant};

use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use crate::support::runtime;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(20);
/// After this long the broker counts as gone for good: restarts take their time.
const PATIENCE: Duration = Duration::from_secs(180);

pub struct Post {
    uri: String,
    channel: Option<(Connection, Channel)>,
}

impl Post {
    pub fn to(uri: &str) -> Self {
        Self { uri: uri.to_owned(), channel: None }
    }

    /// Publishes until the broker has confirmed it; returns how many copies it may have taken.
    pub fn publish(
        &mut self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: &BasicProperties,
    ) -> usize {
        let mut copies = 0;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let attempt = runtime().block_on(async {
                let publish = self.attempt(exchange, key, body, properties, &mut copies);
                tokio::time::timeout(ATTEMPT, publish).await
            });
            match attempt {
                Ok(Ok(Confirmation::Ack(None))) => return copies,
                // A queue that just lost its leader takes nothing, and whoever publishes tries again.
                Ok(Ok(Confirmation::Nack(None)) | Err(_)) | Err(_) => {}
                Ok(Ok(odd)) => panic!("the queue takes it: {odd:?}"),
            }
            self.channel = None;
            std::thread::sleep(Duration::from_millis(500));
        }
        panic!("the broker cannot be reached, or does not confirm");
    }

    async fn attempt(
        &mut self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: &BasicProperties,
        copies: &mut usize,
    ) -> lapin::Result<Confirmation> {
        let channel = self.channel().await?;
        let mandatory = !key.is_empty();
        let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
        let (exchange, key) = (ShortString::from(exchange), ShortString::from(key));
        *copies += 1;
        channel.basic_publish(exchange, key, options, body, properties.clone()).await?.await
    }

    /// All bodies in a queue, taken out of it.
    pub fn drain(&mut self, queue: &str) -> Vec<Vec<u8>> {
        runtime().block_on(async {
            let mut bodies = Vec::new();
            let options = BasicGetOptions { no_ack: true };
            let channel = self.channel().await.expect("the broker is up");
            while let Some(message) =
                channel.basic_get(queue.into(), options).await.expect("the queue can be read")
            {
                bodies.push(message.delivery.data);
            }
            bodies
        })
    }

    async fn channel(&mut self) -> lapin::Result<Channel> {
        if let Some((connection, channel)) = &self.channel
            && connection.status().connected()
        {
            return Ok(channel.clone());
        }
        let connection = Connection::connect(&self.uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        self.channel = Some((connection, channel.clone()));
        Ok(channel)
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        if let Some((connection, _)) = self.channel.take() {
            let _ = runtime().block_on(connection.close(200, "the run is over".into()));
        }
    }
}
