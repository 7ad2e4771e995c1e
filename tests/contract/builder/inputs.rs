//! What a build sees: the same name for the same inputs, and another one for any other.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use bollard::query_parameters::{RemoveImageOptions, TagImageOptionsBuilder};
use image_builder_actors::model::fault::Reason;
use image_builder_actors::ports::{BuildOrder, ImageBuilder};

use super::world::{BASE, RealWorld};
use crate::registry::unique;

async fn inputs(world: &RealWorld, order: &BuildOrder) -> Option<String> {
    ImageBuilder::inputs(&world.engine, &order.plan).await.expect("the context can be sent")
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_sent_counts_and_what_is_ignored_does_not() {
    let world = RealWorld::new().await;
    let from = format!("FROM {BASE}\nCOPY . /\n");
    let order = || {
        world.order(&[
            ("Dockerfile", &from),
            (".dockerignore", "ignored\n"),
            ("a", "1"),
            ("d/b", "2"),
        ])
    };
    let first = inputs(&world, &order()).await.expect("it can be told");
    assert!(first.starts_with("inputs:"), "{first}");
    type Change = fn(&Path) -> std::io::Result<()>;
    let same: [(&str, Change); 3] = [
        ("nothing", |_| Ok(())),
        ("an ignored file", |context| std::fs::write(context.join("ignored"), "x")),
        ("a time", |context| {
            let file = std::fs::File::options().write(true).open(context.join("a"))?;
            file.set_modified(std::time::UNIX_EPOCH)
        }),
    ];
    for (what, change) in same {
        let order = order();
        change(&order.plan.context).expect("changed");
        assert_eq!(inputs(&world, &order).await.as_ref(), Some(&first), "{what}");
    }
    let others: [(&str, Change); 8] = [
        ("a content", |context| std::fs::write(context.join("a"), "2")),
        ("a mode", |context| {
            std::fs::set_permissions(context.join("a"), std::fs::Permissions::from_mode(0o755))
        }),
        ("a name", |context| std::fs::rename(context.join("a"), context.join("c"))),
        ("a place", |context| std::fs::rename(context.join("a"), context.join("d/a"))),
        ("a link", |context| symlink("a", context.join("l"))),
        ("an empty directory", |context| std::fs::create_dir(context.join("e"))),
        ("a file more", |context| std::fs::write(context.join("z"), "")),
        ("the rules", |context| std::fs::write(context.join(".dockerignore"), "ignored\nd\n")),
    ];
    let mut seen = vec![first];
    for (what, change) in others {
        let order = order();
        change(&order.plan.context).expect("changed");
        let other = inputs(&world, &order).await.expect("it can be told");
        assert!(!seen.contains(&other), "{what}");
        seen.push(other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_image_that_moved_is_another_input_and_one_that_nobody_knows_cannot_be_told() {
    let world = RealWorld::new().await;
    let docker = world.engine.docker();
    let name = format!("moving-{}", unique());
    let tag = async |from: &str| {
        let options = TagImageOptionsBuilder::new().repo(&name).tag("latest").build();
        docker.tag_image(from, Some(options)).await.expect("tagged");
    };
    tag(BASE).await;
    let order = world.order(&[("Dockerfile", &format!("FROM {name}\n"))]);
    let first = inputs(&world, &order).await.expect("it can be told");
    assert_eq!(inputs(&world, &order).await.as_ref(), Some(&first));
    let (built, _) = world.build(&world.dockerfile("RUN echo another > /base")).await;
    tag(&built.expect("a build").id).await;
    let moved = inputs(&world, &order).await.expect("it can be told");
    assert_ne!(moved, first);
    docker.remove_image(&name, None::<RemoveImageOptions>, None).await.expect("removed");
    for text in [&format!("FROM localhost:1/{name}"), "ARG X\nFROM $X"] {
        let order = world.order(&[("Dockerfile", text)]);
        assert_eq!(inputs(&world, &order).await, None, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_cannot_be_sent_is_refused_as_in_a_build() {
    let world = RealWorld::new().await;
    let order = world.order(&[("Dockerfile", "FROM scratch\n"), (".dockerignore", "a\n[\n")]);
    let fault = ImageBuilder::inputs(&world.engine, &order.plan).await.expect_err("a bad pattern");
    assert_eq!(fault.reason, Reason::InvalidPlan, "{fault}");
    assert!(fault.message.contains("line 2"), "{fault}");
}
