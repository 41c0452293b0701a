//! HTTP POST with the message as JSON. A person who may write the settings chose the address: unlike that of an image it may
//! be a private one.

use anyhow::{Context, bail};

use super::explain;
use super::message::Message;
use crate::config;

/// What an answer that is not a success says of why.
const ANSWER_MAX: usize = 200;

#[derive(Debug)]
pub(super) struct Webhook {
    config: config::Webhook,
    url: reqwest::Url,
}

impl Webhook {
    pub(super) fn new(config: &config::Webhook) -> anyhow::Result<Self> {
        let url: reqwest::Url = config.url.parse().with_context(|| format!("{:?} is no URL", config.url))?;
        if !matches!(url.scheme(), "http" | "https") {
            bail!("a webhook is http or https, not {}", url.scheme());
        }
        if config.token_file.is_some() && url.scheme() != "https" {
            bail!("a webhook's token is not sent without TLS");
        }
        Ok(Self { config: config.clone(), url })
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), String> {
        let client = self.client().map_err(|error| explain(&*error))?;
        let mut request = client.post(self.url.clone()).json(message);
        if let Some(file) = &self.config.token_file {
            let text =
                std::fs::read_to_string(file).map_err(|error| format!("read {}: {error}", file.display()))?;
            request = request.bearer_auth(text.lines().next().unwrap_or_default());
        }
        // The address may have a secret in it.
        let answer = request.send().await.map_err(|error| explain(&error.without_url()))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let text = answer.text().await.unwrap_or_default();
        let text: String = text.chars().filter(|c| !c.is_control()).take(ANSWER_MAX).collect();
        Err(format!("answered {status}: {text}"))
    }

    fn client(&self) -> anyhow::Result<reqwest::Client> {
        let mut client = reqwest::Client::builder()
            .timeout(super::PATIENCE)
            // The first answer counts: a redirect would carry the message to where nobody sent it.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(ca) = &self.config.ca {
            let pem = std::fs::read(ca).with_context(|| format!("read {}", ca.display()))?;
            let certificate = reqwest::Certificate::from_pem(&pem);
            client = client.tls_certs_only([certificate.with_context(|| format!("read {}", ca.display()))?]);
        }
        client.build().context("set up HTTP")
    }
}
