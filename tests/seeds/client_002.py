"""The client and the simulation of seed 002, as the document has them: only the URL is given, not fixed."""
# ruff: noqa

import asyncio
import json
import websockets


class WebSocketClient:
    def __init__(self, user_id, server_url="ws://localhost:8765"):
        self.user_id = user_id
        self.server_url = server_url
        self.websocket = None

    async def connect(self):
        """连接到WebSocket服务器"""
        self.websocket = await websockets.connect(self.server_url)
        print(f"用户 {self.user_id} 连接成功")

    async def join_room(self, room):
        """加入房间"""
        message = {
            'type': 'join_room',
            'room': room,
            'user_id': self.user_id
        }
        await self.websocket.send(json.dumps(message))
        print(f"用户 {self.user_id} 加入房间 {room}")

    async def send_message(self, room, content):
        """发送消息"""
        message = {
            'type': 'chat_message',
            'room': room,
            'content': content,
            'user_id': self.user_id
        }
        await self.websocket.send(json.dumps(message))
        print(f"用户 {self.user_id} 发送消息: {content}")

    async def listen_messages(self):
        """监听服务器消息"""
        try:
            async for message in self.websocket:
                data = json.loads(message)
                print(f"用户 {self.user_id} 收到消息: {data}")
        except websockets.exceptions.ConnectionClosed:
            print("连接已关闭")

    async def heartbeat(self):
        """发送心跳包"""
        while True:
            await asyncio.sleep(25)
            if self.websocket:
                try:
                    message = {
                        'type': 'heartbeat',
                        'user_id': self.user_id
                    }
                    await self.websocket.send(json.dumps(message))
                except:
                    break


async def simulate_multiple_clients(server_url):
    """模拟多个客户端同时连接"""
    clients = []
    room = "test_room"
    # 创建10个客户端
    for i in range(10):
        client = WebSocketClient(f"user_{i}", server_url)
        clients.append(client)
    # 并发连接
    await asyncio.gather(*[client.connect() for client in clients])
    # 全部加入房间
    await asyncio.gather(*[client.join_room(room) for client in clients])
    # 模拟消息发送
    tasks = []
    for client in clients:
        # 每个客户端发送5条消息
        for j in range(5):
            content = f"这是来自 {client.user_id} 的第 {j+1} 条消息"
            task = asyncio.create_task(
                client.send_message(room, content)
            )
            tasks.append(task)
            await asyncio.sleep(0.1) # 稍微延迟
    # 等待所有消息发送完成
    await asyncio.gather(*tasks)
    # 保持连接一段时间
    await asyncio.sleep(10)
    # 关闭所有连接
    for client in clients:
        await client.websocket.close()
