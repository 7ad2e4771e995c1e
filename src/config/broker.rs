//! The queues.

use std::time::Duration;

use image_builder_actors::model::secret::Secret;
use image_builder_actors::scheduling::retry_policy::RetryPolicy;

use super::reader::Reader;
use super::values;
use crate::broker::rabbitmq::topology::{Topology, TopologySettings};

#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `None` = the embedded queue.
    pub rabbitmq: Option<RabbitConfig>,
    /// What the queues of RabbitMQ are called, whether or not it is used.
    pub topology: Topology,
    /// `None` = no dead letters are kept.
    pub dead_ttl: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct RabbitConfig {
    pub uri: Secret,
    /// The variable that brought the address.
    pub uri_variable: String,
}

impl BrokerConfig {
    /// `None` only where there are errors.
    pub(super) fn read(read: &mut Reader<'_>, retry: &RetryPolicy) -> Option<Self> {
        let (uri, good) = read.good(Reader::rabbitmq_uri);
        let dead_ttl = read.dead_queue_ttl();
        let settings = TopologySettings {
            build_queue: read.build_queue(),
            fail_queue: read.fail_queue(),
            outcome_queue: read.outcome_queue(),
            dead_queue: read.dead_queue(),
            result_queue: read.result_queue(),
            cancel_exchange: read.cancel_exchange(),
            build_lanes: read.build_lanes(),
            build_rungs: retry.rungs(),
            outcome_rungs: retry.rungs(),
        };
        if good && uri.is_none() && settings.result_queue.is_some() {
            read.bad("RESULT_QUEUE", "needs RABBITMQ_URI: nobody else can read the embedded queue");
        }
        // The errors name the variables themselves.
        let topology = Topology::new(settings)
            .map_err(|errors| read.errors.extend(errors.iter().map(ToString::to_string)));
        let (topology, uri_variable) = (topology.ok()?, read.variable_of("RABBITMQ_URI"));
        let rabbitmq = uri.zip(uri_variable);
        let rabbitmq = rabbitmq.map(|(uri, uri_variable)| RabbitConfig { uri, uri_variable });
        Some(Self { rabbitmq, topology, dead_ttl })
    }
}

/// An address of RabbitMQ that somebody gave.
///
/// # Errors
/// What is wrong with it, without a credential.
pub fn broker_address(text: &str) -> Result<Secret, String> {
    (values::AMQP_URI.read)(text)
}
