//! `rediss://` uses the cryptography provider that the application installs. By itself in this file: a provider is installed
//! for the whole process.
#![cfg(feature = "redis-rustls")]

use std::error::Error;
use tower_comet::Comet;

#[tokio::test]
async fn a_rediss_url_needs_a_provider_that_the_application_installs() {
    const URL: &str = "rediss://user:secret@127.0.0.1:1";
    let error = Comet::builder().redis(URL).connect().await.expect_err("no provider is installed");
    let text = format!("{error} {error:?} {}", error.source().map(ToString::to_string).unwrap_or_default());
    assert!(text.contains("install_default") && !text.contains("secret"), "{text}");
    Comet::builder().redis("redis://127.0.0.1:1").connect().await.expect("without TLS none is needed");

    rustls::crypto::ring::default_provider().install_default().expect("the first");
    let comet = Comet::builder().redis(URL).connect().await.expect("nobody answers, which is no error");
    assert!(comet.health().is_err());
}
