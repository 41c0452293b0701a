//! The shell that waits on a guest's serial line.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sterna_client::vm::Vm;
use sterna_lab::bench::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A guest's serial line.
pub struct Console {
    line: sterna_client::Stream,
    asked: u32,
}

impl Console {
    pub async fn open(world: &World, vm: &Vm) -> Result<Self> {
        let line = world.user.client.vms().console(vm.name()).await?;
        Ok(Self { line, asked: 0 })
    }

    /// What a command at the guest's shell prints.
    pub async fn ask(&mut self, command: &str) -> Result<String> {
        self.asked += 1;
        // Put together by the shell, so that the echo of what is typed is not taken for the answer.
        let (begin, end) = (format!("<{}<", self.asked), format!(">{}>", self.asked));
        let line = format!("\necho '<'{0}'<'; {command}; echo '>'{0}'>'\n", self.asked);
        self.line.write_all(line.as_bytes()).await?;
        let mut read = Vec::new();
        let answer = async {
            loop {
                let text = String::from_utf8_lossy(&read).into_owned();
                let answer = text.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
                if let Some((answer, _)) = answer {
                    return anyhow::Ok(answer.trim().to_owned());
                }
                let mut some = [0; 1024];
                let length = self.line.read(&mut some).await?;
                ensure!(length > 0, "the console was closed after {text:?}");
                read.extend_from_slice(&some[..length]);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), answer).await.context("the shell does not answer")?
    }
}
