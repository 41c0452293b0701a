//! Mail through a relay.

use anyhow::{Context, bail};
use lettre::message::{Mailbox, header};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};

use super::explain;
use super::message::Message;
use crate::config::{self, MailTls};

type Transport = AsyncSmtpTransport<Tokio1Executor>;

#[derive(Debug)]
pub(super) struct Mail {
    config: config::Mail,
    host: String,
    port: u16,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Mail {
    pub(super) fn new(config: &config::Mail) -> anyhow::Result<Self> {
        let (host, port) = config.server.rsplit_once(':').context("a mail server is HOST:PORT")?;
        let port = port.parse().with_context(|| format!("{:?} has no port", config.server))?;
        let address =
            |text: &String| text.parse::<Mailbox>().with_context(|| format!("{text:?} is no mail address"));
        let to: Vec<_> = config.to.iter().map(address).collect::<Result<_, _>>()?;
        if to.is_empty() {
            bail!("`to` of a mail receiver names nobody");
        }
        if config.user.is_some() != config.password_file.is_some() {
            bail!("`user` and `password_file` of a mail receiver go together");
        }
        if config.user.is_some() && config.tls == MailTls::None {
            bail!("a password is not sent without TLS");
        }
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { config: config.clone(), host, port, from: address(&config.from)?, to })
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), String> {
        let mail = self.mail(message).map_err(|error| explain(&*error))?;
        // Made anew each time: files are read as they are now, and a message every few hours keeps no connection.
        let transport = self.transport().map_err(|error| explain(&*error))?;
        transport.send(mail).await.map(drop).map_err(|error| explain(&error))
    }

    fn mail(&self, message: &Message) -> anyhow::Result<lettre::Message> {
        let mut mail = lettre::Message::builder()
            .from(self.from.clone())
            .subject(message.subject())
            .date_now()
            .message_id(None)
            .header(header::ContentType::TEXT_PLAIN);
        for to in &self.to {
            mail = mail.to(to.clone());
        }
        mail.body(message.body()).context("write the mail")
    }

    fn transport(&self) -> anyhow::Result<Transport> {
        let tls = match self.config.tls {
            MailTls::None => Tls::None,
            MailTls::Required => Tls::Required(self.tls()?),
            MailTls::Wrapped => Tls::Wrapper(self.tls()?),
        };
        let mut transport =
            Transport::builder_dangerous(&self.host).port(self.port).timeout(Some(super::PATIENCE)).tls(tls);
        if let (Some(user), Some(file)) = (&self.config.user, &self.config.password_file) {
            let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            let password = text.lines().next().unwrap_or_default().to_owned();
            transport = transport.credentials(Credentials::new(user.clone(), password));
        }
        Ok(transport.build())
    }

    fn tls(&self) -> anyhow::Result<TlsParameters> {
        let mut tls = TlsParameters::builder(self.host.clone());
        if let Some(ca) = &self.config.ca {
            let pem = std::fs::read(ca).with_context(|| format!("read {}", ca.display()))?;
            let certificate =
                Certificate::from_pem(&pem).with_context(|| format!("read {}", ca.display()))?;
            tls = tls.certificate_store(CertificateStore::None).add_root_certificate(certificate);
        }
        tls.build().context("set up TLS for mail")
    }
}
