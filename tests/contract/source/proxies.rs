//! Servers that a stranger's repository names, where there is a proxy.

use image_builder::net::proxy::Proxies;
use image_builder::source::{GitSettings, GithubSettings};
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::request::Target;

use super::forward_proxy::ForwardProxy;
use super::git::{name, settings, with};
use super::git_server::{GitRepo, server_url};
use super::{fetched, refused, request};

/// The settings of a worker behind a proxy, whose forge is reached without it.
fn behind(proxy: &ForwardProxy) -> GitSettings {
    GitSettings {
        github: GithubSettings { url: server_url(), api_url: server_url() },
        proxies: Proxies {
            http: Some(proxy.url().parse().expect("a good address")),
            https: None,
            exempt: Some("127.0.0.1".to_owned()),
        },
        ..settings()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submodule_that_only_the_proxy_can_find_is_fetched_by_it() {
    let to = server_url().trim_start_matches("http://").to_owned();
    let proxy = ForwardProxy::start("a-password", &[("elsewhere.invalid:80", to)]).await;
    let inner = GitRepo::create("contract", "inner");
    let commit = inner.commit(&[("inside", "it\n")]);
    let outer = GitRepo::create("contract", "outer");
    let url = format!("http://elsewhere.invalid/contract/{}.git", inner.name);
    outer.add_submodule("part", &url, &commit);
    outer.commit_index();
    let got =
        fetched(&with(behind(&proxy)), &request(&name(&outer), Target::DefaultBranch, None)).await;
    assert_eq!(got.read("part/inside"), "it\n");
    let asked = proxy.asked();
    assert!(
        !asked.is_empty() && asked.iter().all(|name| name == "elsewhere.invalid:80"),
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_repository_has_a_proxy_reach_what_is_private() {
    for host in ["localhost", "127.0.0.1", "169.254.169.254", "[::1]"] {
        let to = server_url().trim_start_matches("http://").to_owned();
        let port = "3081";
        let names = [(&*format!("{host}:{port}"), to)];
        let proxy = ForwardProxy::start("a-password", &names).await;
        let outer = GitRepo::create("contract", "outer");
        outer.add_submodule("part", &format!("http://{host}:{port}/a/b.git"), &"1".repeat(40));
        outer.commit_index();
        let request = request(&name(&outer), Target::DefaultBranch, None);
        refused(&with(behind(&proxy)), &request, Reason::ForbiddenSource, "public address").await;
        assert_eq!(proxy.asked(), [""; 0], "{host}");
    }
}

/// The proxy's own host may be anywhere, but not for whoever names it.
#[tokio::test(flavor = "multi_thread")]
async fn no_repository_reaches_the_host_of_the_proxy() {
    let proxy = ForwardProxy::start("a-password", &[]).await;
    let address = proxy.url().replace("127.0.0.1", "localhost");
    let mut settings = behind(&proxy);
    settings.proxies.http = Some(address.parse().expect("a good address"));
    settings.proxies.exempt = Some("127.0.0.1,localhost".to_owned());
    let outer = GitRepo::create("contract", "outer");
    let port = address.rsplit(':').next().expect("it has a port").to_owned();
    outer.add_submodule("part", &format!("http://localhost:{port}/a/b.git"), &"1".repeat(40));
    outer.commit_index();
    let request = request(&name(&outer), Target::DefaultBranch, None);
    refused(&with(settings), &request, Reason::ForbiddenSource, "public address").await;
}
