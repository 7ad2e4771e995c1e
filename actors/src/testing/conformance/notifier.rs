//! What every notifier promises.

use std::time::Duration;

use crate::model::identity::BuildIdentity;
use crate::model::notification::{Notification, NotificationType, notification_id};
use crate::ports::Notifier;

/// A notification's id and body.
pub type Taken = (String, Vec<u8>);

/// A notifier and the managers that it notifies.
pub trait World {
    fn notifier(&self) -> &dyn Notifier;
    /// The managers refuse the next notification.
    fn refuse_next(&self, retry_after: Option<Duration>);
    /// What the managers took, in order.
    fn taken(&self) -> Vec<Taken>;
}

/// Makes a test of each promise, each in a world of its own.
#[macro_export]
macro_rules! notifier_conformance {
    ($world:expr) => {
        $crate::conformance! {
            notifier, $world,
            every_kind_of_notification_is_taken_with_its_id_and_its_body_byte_by_byte,
            a_refused_notification_can_be_sent_again_under_the_same_id,
            a_receiver_that_asks_for_patience_is_heard,
        }
    };
}

/// A notification that nobody else gets.
pub fn notification(kind: NotificationType) -> Notification {
    Notification {
        id: notification_id(
            &BuildIdentity::new(Some("u"), &uuid::Uuid::new_v4().to_string()),
            kind,
        ),
        kind,
        // Spaces, order and an escape that reading and writing it again would change.
        body: br#"{ "type":"x",  "data": {"b":1,"a":"\u00e4"} }"#.to_vec(),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
    }
}

pub async fn every_kind_of_notification_is_taken_with_its_id_and_its_body_byte_by_byte(
    world: &impl World,
) {
    let kinds = [
        NotificationType::ImageReady,
        NotificationType::BuildFailed,
        NotificationType::BuildCancelled,
    ];
    let sent = kinds.map(notification);
    for notification in &sent {
        world.notifier().notify(notification).await.expect("it is taken");
    }
    assert_eq!(world.taken(), sent.map(|sent| (sent.id, sent.body)));
}

pub async fn a_refused_notification_can_be_sent_again_under_the_same_id(world: &impl World) {
    let sent = notification(NotificationType::ImageReady);
    world.refuse_next(None);
    let error = world.notifier().notify(&sent).await.expect_err("it is refused");
    assert_eq!(error.retry_after, None);
    assert!(!error.message.is_empty());
    assert_eq!(world.taken(), []);
    world.notifier().notify(&sent).await.expect("it is taken");
    assert_eq!(world.taken(), [(sent.id, sent.body)]);
}

pub async fn a_receiver_that_asks_for_patience_is_heard(world: &impl World) {
    world.refuse_next(Some(Duration::from_secs(7)));
    let sent = notification(NotificationType::BuildFailed);
    let error = world.notifier().notify(&sent).await.expect_err("it is refused");
    assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
}
