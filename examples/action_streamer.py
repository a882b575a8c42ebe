#!/usr/bin/env python3
"""Video from a server to a client, and actions back.

The source is a webcam if there is one, else a rendered Gymnasium environment that the client's
actions drive. On one machine, in two terminals:

    python examples/action_streamer.py --server
    python examples/action_streamer.py --client
"""

import argparse
import json
import os
import queue
import time
from pathlib import Path

from interrupt import stop_on_signals

from agentlace import ActionClient, ActionConfig, ActionServer
from agentlace.internal.utils import jpeg_to_mat, mat_to_jpeg


def make_config(port):
    return ActionConfig(
        port_number=port,
        action_keys=["move", "reset"],
        observation_keys=["image", "frame"],
        broadcast_port=port + 1,
    )


class Webcam:
    """Frames of the first camera; actions have no effect."""

    def __init__(self):
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # no camera is no error here
        import cv2

        self._capture = cv2.VideoCapture(0)
        self.found = self._capture.isOpened()

    def frame(self, _action):
        _, image = self._capture.read()
        return image

    def close(self):
        self._capture.release()


class RenderedEnv:
    """Frames of an environment that moves with each action (a random one if there is none)."""

    def __init__(self, name):
        import gymnasium

        self._env = gymnasium.make(name, render_mode="rgb_array")
        self._env.reset(seed=0)

    def frame(self, action):
        action = self._env.action_space.sample() if action is None else action
        _, _, terminated, truncated, _ = self._env.step(action)
        if terminated or truncated:
            self._env.reset()
        return self._env.render()[:, :, ::-1]  # OpenCV's order of channels

    def close(self):
        self._env.close()


def make_source(env_name):
    webcam = Webcam()
    if webcam.found:
        print("source: webcam", flush=True)
        return webcam
    webcam.close()
    print(f"source: {env_name}, rendered (there is no webcam)", flush=True)
    return RenderedEnv(env_name)


def serve(args):
    newest = {"image": b"", "frame": -1}
    action, sent_at = [None], {}

    def on_obs(keys):
        return {key: newest[key] for key in keys}

    def on_act(key, payload):
        action[0] = payload.get("action") if key == "move" else None
        seen = sent_at.get(payload.get("frame"))
        # Both times are of this machine's clock: out to the client, and back with its action.
        return {"loop_ms": None if seen is None else 1000 * (time.monotonic() - seen)}

    stop = stop_on_signals()
    source = make_source(args.env)
    end = time.monotonic() + args.seconds if args.seconds else float("inf")
    with ActionServer(make_config(args.port), on_obs, on_act, broker=args.broker) as server:
        server.start(threaded=True)
        tick = time.monotonic()
        while (now := time.monotonic()) < end and not stop.wait(max(0, tick - now)):
            tick += 1 / args.fps
            number = newest["frame"] + 1
            newest = {"image": mat_to_jpeg(source.frame(action[0])), "frame": number}
            sent_at[number] = time.monotonic()
            sent_at.pop(number - 100, None)
            server.publish_obs(newest)
    source.close()
    print(json.dumps({"frames": newest["frame"] + 1}))


class Window:
    """Shows frames; closed by its button or by Escape."""

    def __init__(self):
        import pygame

        self._pygame = pygame
        pygame.init()
        self._screen = None

    def show(self, _number, image):
        pygame = self._pygame
        height, width = image.shape[:2]
        if self._screen is None:
            self._screen = pygame.display.set_mode((width, height))
        picture = pygame.image.frombuffer(image[:, :, ::-1].tobytes(), (width, height), "RGB")
        self._screen.blit(picture, (0, 0))
        pygame.display.flip()
        return not any(
            event.type == pygame.QUIT or getattr(event, "key", None) == pygame.K_ESCAPE
            for event in pygame.event.get()
        )


class Folder:
    """Saves frames as JPEG files."""

    def __init__(self, path):
        self._path = Path(path)
        self._path.mkdir(parents=True, exist_ok=True)

    def show(self, number, image):
        (self._path / f"{number:06d}.jpg").write_bytes(mat_to_jpeg(image))
        return True


def watch(args):
    frames = queue.Queue(maxsize=1)

    def on_obs(obs):
        try:
            frames.put_nowait(obs)
        except queue.Full:
            pass  # shown too slowly: the next frame is newer anyway

    screen = Folder(args.out) if args.headless else Window()
    client, shown, loops, start = None, 0, [], time.monotonic()
    try:
        config = make_config(args.port)
        client = ActionClient(args.ip, config, wait_for_server=True, broker=args.broker)
        client.register_obs_callback(on_obs)
        start = time.monotonic()
        while not args.seconds or time.monotonic() - start < args.seconds:
            try:
                obs = frames.get(timeout=1)
            except queue.Empty:
                print("waiting for frames", flush=True)
                continue
            if not screen.show(obs["frame"], jpeg_to_mat(obs["image"])):
                break
            shown += 1
            reply = client.act("move", {"frame": obs["frame"], "action": obs["frame"] // 10 % 2})
            if reply and reply["loop_ms"] is not None:
                loops.append(reply["loop_ms"])
            if shown % 50 == 0:
                fps = shown / (time.monotonic() - start)
                print(f"{fps:5.1f} frames/s, frame to action {loops[-1]:.1f} ms", flush=True)
    except KeyboardInterrupt:
        pass
    seconds = time.monotonic() - start
    if client is not None:
        client.stop()
    median = sorted(loops)[len(loops) // 2] if loops else None
    missed = 0 if client is None else client.missed_obs
    summary = {"frames": shown, "fps": round(shown / seconds, 1), "missed": missed}
    print(json.dumps({**summary, "median_loop_ms": median and round(median, 2)}))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--server", action="store_true", help="send frames, receive actions")
    role.add_argument("--client", action="store_true", help="receive frames, send actions")
    parser.add_argument("--ip", default="localhost", help="the broker's host")
    parser.add_argument("--port", type=int, default=5556, help="number of the service")
    parser.add_argument("--broker", help="the broker's address; default AGENTLACE_BROKER or --ip")
    parser.add_argument("--env", default="CartPole-v1", help="environment if there is no webcam")
    parser.add_argument("--fps", type=float, default=20, help="frames per second")
    parser.add_argument("--seconds", type=float, default=0, help="end after so long; 0: Ctrl-C")
    parser.add_argument("--headless", action="store_true", help="save frames, open no window")
    parser.add_argument("--out", default="runs/frames", help="folder for --headless")
    args = parser.parse_args()
    serve(args) if args.server else watch(args)


if __name__ == "__main__":
    main()
