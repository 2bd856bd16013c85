// Search on a page that was opened as a file: browsers start no worker from one, so its script runs in a hidden frame.
if (location.protocol === "file:") {
  const inside = () => {
    postMessage = (data) => parent.postMessage(data, "*");
    importScripts = (...urls) =>
      urls.reduce(
        (before, url) =>
          before.then(
            () =>
              new Promise((loaded) => {
                const script = document.createElement("script");
                script.src = url;
                script.onload = loaded;
                document.body.append(script);
              }),
          ),
        Promise.resolve(),
      );
  };
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const view = this.frame.contentWindow;
      this.ready = new Promise((resolve) => {
        view.document.open();
        view.document.write(`<body><script>(${inside})()<\/script><script src="${url}"><\/script></body>`);
        view.document.close();
        view.addEventListener("load", resolve);
      });
      addEventListener("message", (event) => {
        if (event.source === view) this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
