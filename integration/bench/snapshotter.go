// The daemon of stargz-snapshotter, for scripts/bench. Debian ships ctr-remote and the library
// (golang-github-containerd-stargz-snapshotter-dev), but not the daemon that is made of it. This serves the library on
// a socket with the library's own defaults: metadata in memory, prefetch and background fetch on, 30 s request timeout.
package main

import (
	"context"
	"flag"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/log"
	"github.com/containerd/containerd/reference"
	"github.com/containerd/containerd/remotes/docker"
	stargzfs "github.com/containerd/stargz-snapshotter/fs"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/fs/layer"
	"github.com/containerd/stargz-snapshotter/fs/source"
	memorymetadata "github.com/containerd/stargz-snapshotter/metadata/memory"
	snbase "github.com/containerd/stargz-snapshotter/snapshot"
	rhttp "github.com/hashicorp/go-retryablehttp"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
)

func main() {
	var cfg config.Config
	addr := flag.String("address", "", "gRPC unix socket")
	root := flag.String("root", "", "state directory")
	level := flag.String("log-level", "info", "log level")
	flag.BoolVar(&cfg.NoBackgroundFetch, "no-background-fetch", false, "")
	flag.BoolVar(&cfg.NoPrefetch, "no-prefetch", false, "")
	flag.BoolVar(&cfg.AllowNoVerification, "allow-no-verification", false, "")
	flag.Parse()
	cfg.NoPrometheus = true
	lvl, err := logrus.ParseLevel(*level)
	fatal(err)
	logrus.SetLevel(lvl)
	logrus.SetFormatter(&logrus.JSONFormatter{TimestampFormat: log.RFC3339NanoFixed})
	ctx := log.WithLogger(context.Background(), log.L)

	hosts := func(ref reference.Spec) ([]docker.RegistryHost, error) {
		rc := rhttp.NewClient()
		rc.Logger = nil
		std := rc.StandardClient()
		std.Timeout = 30 * time.Second
		h := docker.RegistryHost{
			Client: std, Host: ref.Hostname(), Scheme: "https", Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
			Authorizer:   docker.NewDockerAuthorizer(docker.WithAuthClient(std)),
		}
		if local, _ := docker.MatchLocalhost(h.Host); local {
			h.Scheme = "http"
		}
		return []docker.RegistryHost{h}, nil
	}
	fatal(os.MkdirAll(filepath.Join(*root, "snapshotter"), 0700))
	fs, err := stargzfs.NewFilesystem(filepath.Join(*root, "stargz"), cfg,
		stargzfs.WithMetadataStore(memorymetadata.NewReader),
		stargzfs.WithGetSources(source.FromDefaultLabels(hosts)),
		stargzfs.WithOverlayOpaqueType(layer.OverlayOpaqueTrusted))
	fatal(err)
	sn, err := snbase.NewSnapshotter(ctx, filepath.Join(*root, "snapshotter"), fs, snbase.AsynchronousRemove)
	fatal(err)

	rpc := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(rpc, snapshotservice.FromSnapshotter(sn))
	os.Remove(*addr)
	l, err := net.Listen("unix", *addr)
	fatal(err)
	go func() { fatal(rpc.Serve(l)) }()
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGINT, syscall.SIGTERM)
	if s := <-sig; s == syscall.SIGINT {
		sn.Close()
	}
}

func fatal(err error) {
	if err != nil {
		logrus.Fatal(err)
	}
}
